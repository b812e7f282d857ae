"""All tables of a data set by one command: recipes, plan, stages, tables, the figures of record."""
