"""Fails unless every test that is written in test*.py is one that unittest runs.

A method hides an earlier one of the same name, and a class that is no TestCase is passed over: unittest says nothing of either.
"""

import ast
import glob
import inspect
import os
import sys
import unittest


def written():
    """File and line of each function whose name begins with "test"."""
    for path in glob.glob("test*.py"):
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test"):
                yield path, min([node.lineno] + [decorator.lineno for decorator in node.decorator_list])


def run(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from run(test)
        else:
            code = inspect.unwrap(getattr(type(test), test._testMethodName)).__code__
            yield os.path.basename(code.co_filename), code.co_firstlineno


def main():
    tests, registered = set(written()), set(run(unittest.defaultTestLoader.discover(".")))
    print(f"{len(tests)} tests written, {len(registered)} run")
    for path, line in sorted(tests - registered):
        print(f"{path}:{line}: a test that is never run")
    # More may run than are written: some are made by loops.
    sys.exit(not tests or not tests <= registered)


if __name__ == "__main__":
    main()
