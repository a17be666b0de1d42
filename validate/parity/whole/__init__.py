"""Does one graph of the whole detector find what the reference finds, ties apart?"""
