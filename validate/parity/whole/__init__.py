"""Does a whole graph give what the reference gives, ties apart?"""
