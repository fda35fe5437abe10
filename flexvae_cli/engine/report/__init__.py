"""One self-contained HTML page on a run, finished, going on, or killed."""
