"""How good a representation and a clustering are; needs class labels, which training never sees."""
