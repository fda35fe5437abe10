"""From files to batches: find the images, read them whatever they are, crop them, order them, load them ahead."""
