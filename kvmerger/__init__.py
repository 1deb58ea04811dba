"""KV-cache compression policies, and an engine that runs many of them on one prefill. Imports nothing on its own."""
