"""The plugin author's kit: a new plugin from a template, and the contract that every plugin is held to."""
