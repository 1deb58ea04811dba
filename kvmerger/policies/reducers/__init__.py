"""`+name`: what becomes of the tokens a ranking drops, one file for each way to merge them into the kept ones."""
