"""The report as one HTML page: what stands on it, a file a part, and `rendering`, which puts the parts together."""

from jobs.reporting.page.rendering import DEFAULT_NAME, TEMPLATES, ReportPage, render_page, write_page
from jobs.reporting.page.setting import Panel, SettingPage

__all__ = ["DEFAULT_NAME", "TEMPLATES", "Panel", "ReportPage", "SettingPage", "render_page", "write_page"]
