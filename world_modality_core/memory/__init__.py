"""World memories: what fills them, and the layers that read them."""
