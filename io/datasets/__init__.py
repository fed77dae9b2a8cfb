"""Typed inputs by contract: text, Parquet, Avro and tables of databases."""
