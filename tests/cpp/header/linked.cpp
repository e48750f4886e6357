// Half of a program: what the header defines may be defined in both.
#include "everything.hpp"

void LINKED_NAME(int how_often);
void LINKED_NAME(int how_often) {
    if (how_often > 0)
        everything::use_all();
}

#ifdef LINKED_MAIN
void linked_other(int how_often);
int main() {
    linked_other(0);
    LINKED_NAME(0);
}
#endif
