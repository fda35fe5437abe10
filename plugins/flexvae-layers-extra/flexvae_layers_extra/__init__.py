"""More layers for FlexVAE's structure language, as a plugin package."""
