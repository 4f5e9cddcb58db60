"""What verbs are made of, where one file for each would be too long or two of them share it."""
