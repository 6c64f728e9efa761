"""Work in parts: on threads of this process, or on workers of Apache Beam, which may be processes here or machines elsewhere."""
