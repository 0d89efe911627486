"""What a model as analysed costs."""
