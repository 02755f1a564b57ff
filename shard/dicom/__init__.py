"""Read DICOM files: their tags, and their pixels as grey values. Requires pip install '.[dicom]'."""
