"""Files in and out: FASTA, records.tsv, HDF5. No torch."""
