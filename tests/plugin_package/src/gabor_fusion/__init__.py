"""A backbone of Gabor filters, a rule, and a method of both, for fusionflow."""
