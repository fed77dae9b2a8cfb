"""What the footers of Parquet files tell of their columns."""

import pyarrow as pa
import pyarrow.parquet as pq


def repeating_texts(metadata: pq.FileMetaData, schema: pa.Schema) -> list[str]:
    """The columns of text whose values take less of the file than the rows' references to them.

    Raises:
        UnicodeDecodeError: the name of a column is damaged.
    """
    if not metadata.num_row_groups:
        return []
    group = metadata.row_group(0)
    chunks = {chunk.path_in_schema: chunk for chunk in map(group.column, range(group.num_columns))}
    found = []
    for field in schema:
        chunk = chunks.get(field.name)
        if field.type != pa.string() or chunk is None or not chunk.has_dictionary_page:
            continue
        of_values = chunk.data_page_offset - (chunk.dictionary_page_offset or 0)
        if 2 * of_values < chunk.total_compressed_size:
            found.append(field.name)
    return found
