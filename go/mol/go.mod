module git.moleculesai.app/molecule-ai/libmol/go/mol

go 1.24
