"""`showtell serve`: a captioner as a page and an HTTP API."""
