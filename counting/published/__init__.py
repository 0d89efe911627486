"""What papers print, worked out again."""
