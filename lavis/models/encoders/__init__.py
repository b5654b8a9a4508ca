"""Frozen encoders: pictures or clouds in, tokens out."""
