"""The callbacks that come with the tool: observers of training events."""
