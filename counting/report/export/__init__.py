"""Results to take away: `comma_separated` (files of rows) and `markdown` (the answer and all tables)."""
