"""BLEU, CIDEr and ROUGE-L, the same as rewards, and the baselines beside a model's scores."""
