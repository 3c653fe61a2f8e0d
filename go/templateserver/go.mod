module git.moleculesai.app/molecule-ai/libmol/go/templateserver

go 1.23
