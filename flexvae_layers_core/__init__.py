"""The layers of FlexVAE's structure language, as a plugin package: the seven, and their like in 1-D and 3-D."""
