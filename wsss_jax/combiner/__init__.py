"""The combiner: score maps of several systems become one, learned from image labels alone.

``settings.Combining`` are its settings, ``evidence.Inputs`` what it combines; ``learn.learn``
writes a run folder and ``fuse.fuse`` applies one.
"""
