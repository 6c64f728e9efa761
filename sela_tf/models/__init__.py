"""Networks of a backbone, an optional hidden layer and T heads, and passes of a network over a data set."""
