"""What the server must not forget: tables, SQLite and PostgreSQL, migrations, backups."""
