"""Measures of how good a representation and a clustering are, by class labels that training never sees."""
