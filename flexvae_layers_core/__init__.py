"""The seven layers of FlexVAE's structure language, as a plugin package."""
