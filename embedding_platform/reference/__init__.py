"""What vectors and speed are measured against: the article's code, and full-size models with seeded weights."""
