"""Turn a file into text with places, and text into passages; runs in the reading process.

Nothing here may import pydantic, numpy or a store: the process starts in a tenth of a second and
imports a parser's library when the first such file comes.
"""
