"""Router splits: customers to arms, by arithmetic, under one epoch."""
