"""What a trained model is asked for: captions, answers, features, retrieval."""
