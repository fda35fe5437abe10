"""One thin file per subcommand: parse, call, print."""
