"""The combiner: score maps of several systems become one, learned from image labels alone."""
