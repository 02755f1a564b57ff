"""The report page: tables, figures, notes and the HTML template."""
