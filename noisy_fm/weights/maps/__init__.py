"""Tables of names, a file a family of models; see `rules`.

A function of a file makes the table for one of our modules, whose fields say how many stages and
heads it has: `vit.timm(module)`, `vit.hugging_face(module)`.
"""
