"""The same result with less memory: a net run layer by layer, band by band, through files."""
