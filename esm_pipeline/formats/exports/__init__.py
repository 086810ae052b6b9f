"""Results in the formats of others: tables, arrays, AnnData, one dataset for each protein."""
