"""BLEU, CIDEr and ROUGE-L, the rewards, and the baselines they are read beside."""
