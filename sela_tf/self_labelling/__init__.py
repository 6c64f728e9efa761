"""The method: who labels what, and when. Labels live in a table, the loss looks them up, the callback rewrites them."""
