"""DICOM files: their tags, and their pixels as grey values. Needs pip install '.[dicom]'."""
