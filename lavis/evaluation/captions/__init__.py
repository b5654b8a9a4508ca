"""Caption metrics: BLEU, ROUGE-L and CIDEr in Python, METEOR and SPICE through Java."""
