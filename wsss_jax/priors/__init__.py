"""Score maps, saliency, masks and regions that other tools wrote, read without running them."""
