"""A trained model at work on single pictures and clouds: loading, captions, questions; what the demos and the page stand on."""
