"""Everything that needs torch. Knows the light half, never the terminal."""
