"""In papermill's place in the quick repository of `fake_run`: cells run in the step's own process, without a kernel."""

import contextlib
import io
import logging
import traceback

import nbformat


class LocalHandler:
    """What a handler of files is derived from."""


class Handlers:
    """Keeps the handler that writes the executed notebook."""

    def register(self, prefix, handler):
        self.handler = handler


papermill_io = Handlers()


class PapermillExecutionError(Exception):
    """The error of a cell."""

    def __init__(self, error):
        super().__init__(str(error))
        self.ename, self.evalue = type(error).__name__, str(error)
        self.traceback = traceback.format_exception(error)


def execute_notebook(path, output, parameters, *, stdout_file, **_):
    """Execute the notebook's cells in this process, with a cell of parameters after the first; write the result."""
    book = nbformat.read(path, as_version=4)
    given = nbformat.v4.new_code_cell("# Parameters\n" + "".join(f"{n} = {v!r}\n" for n, v in parameters.items()))
    given.metadata["tags"] = ["injected-parameters"]
    first = next(number for number, cell in enumerate(book.cells) if cell.cell_type == "code")
    book.cells.insert(first + 1, given)
    namespace = {"__name__": "__main__", "In": []}
    for cell in (cell for cell in book.cells if cell.cell_type == "code"):
        namespace["In"].append(cell.source)
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(cell.source, namespace)
        except Exception as error:
            raise PapermillExecutionError(error) from error
        finally:
            text = printed.getvalue()
            cell.outputs = [nbformat.v4.new_output("stream", text=text)] if text else []
            stdout_file.write(text)
            logging.getLogger("papermill").info(text)
            papermill_io.handler.write(nbformat.writes(book), str(output))
