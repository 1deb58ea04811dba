"""Where rows come from: files, archives, the hub. Never what a row means."""
